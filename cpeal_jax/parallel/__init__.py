"""Distribution over devices and processes: placement, collectives, agreement.

`sharding` places arrays and compiles per-device functions, `rowwise` has the
collectives over the pool's rows, and `processes` coordinates several processes.
"""
