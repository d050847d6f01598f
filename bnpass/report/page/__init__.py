"""report.html: one file with the result, the graph around every site, curves and commands."""

from bnpass.report.page.page import Card, Page, Section, write_page

__all__ = ["Card", "Page", "Section", "write_page"]
