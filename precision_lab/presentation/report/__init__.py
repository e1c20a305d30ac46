"""Results on one page: a file to send to a colleague, which needs nothing but a browser.

`write_report` shows all experiments, `write_scan_page` the tensors of somebody's own files. Both have the same parts to
play with: a loss scale and a format over exponent histograms, and one number whose bits can be flipped. The page asks
the network for nothing, and forbids itself to. The templates are files of their own, in ``templates/``.
"""

from precision_lab.presentation.report.pages import write_report, write_scan_page

__all__ = ["write_report", "write_scan_page"]
