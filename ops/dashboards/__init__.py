"""The Grafana dashboards and what generates them: overview, bottleneck and step size."""
