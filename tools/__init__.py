"""Tools that measure and show the tunnel: a laboratory of namespaces, load generators, benchmarks, a demonstration.

Not here: anything that the program needs to run, `bench` and `demo` of the command excepted.
"""
