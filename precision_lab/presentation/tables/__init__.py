"""Tables of results by topic, independent of how they are rendered.

`tables_of` in `table` knows the tables of every type of result.
"""
