"""Ready suites, one YAML file each; `coadapt.load_suite` takes their names."""
