"""Results as rows of text, by topic; whoever shows them chooses how.

`tables_of` in `table` knows the tables of every type of result.
"""
