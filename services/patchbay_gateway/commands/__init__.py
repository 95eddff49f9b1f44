"""
Verbs of the command line, one module per subject.

They parse options, import the service that they start, and print. Nothing here is imported by a service.
"""
