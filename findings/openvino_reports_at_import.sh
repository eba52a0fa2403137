#!/usr/bin/env bash
# openvino 2026.4.1 with openvino-telemetry 2025.2.0, Linux x86-64, Python 3.11.
#
# `import openvino`, without a model, writes intel/openvino_ga_cid (a number for this user) and intel/stats (how often it
# was imported) into the home; a name server that listened was asked for Google Analytics. With CI=true it writes nothing.
# There is no variable of its own to switch it off (`opt_in_out --opt_out` writes a file, and sends an event, by its
# source); but openvino works without openvino-telemetry, and sys.modules["openvino_telemetry"] = None before the import
# makes it do so: nothing is written. All of that was seen in an empty home and in a network of its own that leads nowhere
# (unshare), so that this script itself reports nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0
isolated=(unshare --net)
[ "$(id -u)" = 0 ] || isolated+=(--map-root-user)

# run code in an empty home: CODE VARIABLE=VALUE...; prints the files that are in it then
look() {
    local home code=$1
    shift
    home=$(mktemp -d -p "$folder")
    "${isolated[@]}" env -u CI -u TF_BUILD -u JENKINS_URL HOME="$home" "$@" "$folder/venv/bin/python" -c "$code" 2>/dev/null
    find "$home" -type f -printf '%P\n' | sort
}

check() {
    if [ "$2" != "$3" ]; then
        printf 'changed: %s\nseen:\n%s\nexpected:\n%s\n' "$1" "$2" "$3"
        exit 1
    fi
}

silent='import sys; sys.modules["openvino_telemetry"] = None; import openvino; openvino.Core(); print(openvino.__version__[:8])'
check "as it comes" "$(look 'import openvino')" $'intel/openvino_ga_cid\nintel/stats'
check "with CI=true" "$(look 'import openvino' CI=true)" ""
check "without openvino-telemetry" "$(look "$silent")" "2026.4.1"
echo "as described"
