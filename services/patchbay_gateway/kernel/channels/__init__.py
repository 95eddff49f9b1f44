"""
Calls between services and to plugins: one port, two adapters (docs/adr/0002).

`port` says what a call is, `methods` names the methods of the contract, `inprocess` calls a servicer of
this process, `remote` is grpc.aio. No caller asks which one it has.
"""
