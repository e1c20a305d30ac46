"""That results are the same to the bit on every processor: digests of named runs, computed under many levels of one."""
