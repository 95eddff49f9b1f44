"""
For tests of plugins: a harness, a fake of the gateway, and the conformance suite.

Import the modules by name (`from patchbay.testing import harness`); nothing here is needed to serve.
"""
