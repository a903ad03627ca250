"""Turns records into tables, figures and a page. It reads files only and imports no torch."""
