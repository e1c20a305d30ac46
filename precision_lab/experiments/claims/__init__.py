"""The folklore of mixed precision: claims by subject, each with a check, and the experiment that judges them."""
