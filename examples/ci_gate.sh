#!/usr/bin/env bash
# A gate for a pipeline: convert, stop if a tensor lost too much, and leave a summary for the job's page.
# Usage: ci_gate.sh CHECKPOINT OUTPUT [LIMIT...], such as ci_gate.sh grok-1 out/grok-1-Q4_K_M.gguf sqnr_db=20
set -euo pipefail
checkpoint=$1 output=$2
shift 2
limits=("${@:-relative_rms=0.1}")

rm -f -- "$output.report.json" # of an earlier run
status=0
weightcast convert "$checkpoint" "$output" --report "$output.report.json" --quiet \
  "${limits[@]/#/--fail-over=}" ${WEIGHTCAST_OPTIONS:-} || status=$?
# The summary is of most use where the gate closed; other failures leave no report.
if [ -e "$output.report.json" ]; then
  weightcast report "$output.report.json" - >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"
fi
exit "$status"
