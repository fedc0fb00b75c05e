"""From a recorded run to summary.json, report.html, overview.png and flight.gif."""
