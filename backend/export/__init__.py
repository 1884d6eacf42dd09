"""Export what people made in a project of Label Studio as files to train with: `vlsam export`."""
