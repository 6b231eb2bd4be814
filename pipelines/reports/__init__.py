"""Reports: tables, figures and pages made from stored results."""
