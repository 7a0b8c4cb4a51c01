"""What kernels compute: definitions in TVM's tensor expressions and IR, unscheduled."""
