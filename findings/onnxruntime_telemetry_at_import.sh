#!/usr/bin/env bash
# onnxruntime 1.32.0, Linux x86-64, Python 3.11.
#
# `import onnxruntime`, without a session, writes .cache/Microsoft/DeveloperTools/.onnxruntime/deviceid and
# onnxruntime.db into the home, and starts one more thread. With CI=true it does neither, so that a test in CI does not
# see it; ORT_DISABLE_TELEMETRY=1 before the import prevents both. disable_telemetry_events() after it is too late: the
# files are there. 1.28.0 writes nothing. All of that was seen, in an empty home and in a network of its own that leads
# nowhere (unshare), so that this script itself reports nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/1.28.0"
python3 -m venv "$folder/1.32.0"
"$folder/1.28.0/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.28.0 numpy==2.4.6
"$folder/1.32.0/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 numpy==2.4.6
isolated=(unshare --net)
[ "$(id -u)" = 0 ] || isolated+=(--map-root-user)

# import onnxruntime in an empty home: VERSION CODE VARIABLE=VALUE...; prints files and threads
look() {
    local home version=$1 code=$2
    shift 2
    home=$(mktemp -d -p "$folder")
    "${isolated[@]}" env -u CI -u ORT_DISABLE_TELEMETRY -u XDG_CACHE_HOME HOME="$home" "$@" \
        "$folder/$version/bin/python" -c "
import os, time
def threads(): return len(os.listdir('/proc/self/task'))
import numpy
before = threads()
$code
time.sleep(1)
print('threads', threads() - before)"
    find "$home" -path '*onnxruntime*' -type f -printf '%f\n' | sort
}

check() {
    if [ "$2" != "$3" ]; then
        printf 'changed: %s\nseen:\n%s\nexpected:\n%s\n' "$1" "$2" "$3"
        exit 1
    fi
}

seen=$(look 1.32.0 "import onnxruntime")
check "1.32.0 as it comes" "$(grep -v threads <<<"$seen")" $'deviceid\nonnxruntime.db'
quiet=$(look 1.32.0 "import onnxruntime" ORT_DISABLE_TELEMETRY=1)
check "files with ORT_DISABLE_TELEMETRY=1" "$(grep -v threads <<<"$quiet")" ""
check "files with CI=true" "$(look 1.32.0 "import onnxruntime" CI=true | grep -v threads)" ""
late=$(look 1.32.0 "import onnxruntime; onnxruntime.disable_telemetry_events()")
check "switched off after the import" "$(grep -v threads <<<"$late")" $'deviceid\nonnxruntime.db'
check "1.28.0 as it comes" "$(look 1.28.0 "import onnxruntime" | grep -v threads)" ""
more=$(($(grep -o '[0-9]*$' <<<"$(grep threads <<<"$seen")") - $(grep -o '[0-9]*$' <<<"$(grep threads <<<"$quiet")")))
check "threads more than with ORT_DISABLE_TELEMETRY=1" "$more" 1
echo "as described"
