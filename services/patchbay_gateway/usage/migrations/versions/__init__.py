"""One module per revision; revisions never change once released."""
