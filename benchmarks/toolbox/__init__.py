"""What the benchmarks share: machine, timing, tables, flops, and a neural backup policy."""
