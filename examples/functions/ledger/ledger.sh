#!/bin/sh
# Writes one line "task attempt" to the file $LEDGER, and the same as its
# result, after it waited for as many milliseconds as the payload says (none
# when it is empty). A line in the ledger without a result, or two lines for one
# task, are what a test of exactly-once completion looks for.
set -eu
ms=$(cat)
case $ms in
  *[!0-9]* | ??????*) echo "ledger: the payload is milliseconds, 0 to 99999, not '$ms'" >&2; exit 1 ;;
esac
if [ -n "$ms" ]; then
  ms=00000$ms
  fraction=${ms#"${ms%???}"}
  sleep "${ms%???}.$fraction"
fi
# One write to a file opened for appending: lines of many workers do not mix.
line="$ISOBAR_TASK_ID $ISOBAR_ATTEMPT"
printf '%s\n' "$line" >>"$LEDGER"
printf '%s\n' "$line"
