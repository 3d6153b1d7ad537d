"""The console: pages for people who would rather look than read. Rendered here, drawn by htmx and ECharts from the package."""
