"""
The Patchbay SDK: the contract in Python and what a plugin author builds on.

Import the modules by name (`from patchbay import errors, executor, serve`); this file exports nothing
so that importing one module never loads the others.
"""
