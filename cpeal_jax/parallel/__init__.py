"""Distributes the work over devices and processes.

`sharding` places arrays and compiles per-device functions, `rowwise` has the
collectives over the pool's rows, and `processes` lets several processes take
the same decisions.
"""
