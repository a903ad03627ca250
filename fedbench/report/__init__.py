"""From records to tables, figures and a page. Reads files only and imports no torch."""
