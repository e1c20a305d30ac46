"""A fuzzer of the command line: `python -m tests.fuzz --help`.

Plain mutation, and not Hypothesis: input N of a seed is one function of two numbers, so that it can be made again
alone, in any process and on any number of workers, without a database of examples and without the N - 1 inputs before
it. What Hypothesis does better, making an example smaller, is little work for files of a few kilobytes.

- `seeds`: good files, and the code that writes them;
- `mutations`: what is done to bytes, JSON, archives, arrays, pickles and text;
- `doors`: every option that reads, and a command for each; from a number to an input;
- `harness`: one input in a process of its own, and what must be so afterwards;
- `controls`: commands that break each of these promises, to show that the harness objects;
- `regressions`: what was found, one by one.

It needs Linux (/proc, fork) and torch.
"""
