"""From a sweep file to checked runs: configuration, plug-ins, planning and tuning."""
