"""Second derivatives and singular values: Hessian products, Lanczos, conditioning."""
