"""The battery's checks: functions of a `Case` that return nothing or raise AssertionError saying what is wrong."""
