#!/usr/bin/env bash
# starts.sh [STARTS=200] [AT_ONCE=6] [DEVICE=cuda:0] [SECONDS=500]     in a checkout's root where ./moe works (JAVA_HOME, TORNADOVM_HOME, MOE_NO_BUILD=1)
# Starts "moe bench" of small layers and counts how they end. Kinds in turn, as long as the seconds last:
#   launcher-1, launcher-4  ./moe (preloads libjsig), one part, four parts on one device; STARTS of both together
#   guard-1, guard-4        java with the launcher's argument file and no LD_PRELOAD: the library's own protection; a quarter as many more
# A death is an exit status of 128 or more, or an hs_err file; any other status but 0 is a failure, whose end is printed. Logs in starts.logs/.
set -u
starts=${1:-200} at_once=${2:-6} device=${3:-cuda:0} seconds=${4:-500}
shape=${SHAPE:-32:768:2048:8} tokens=${TOKENS:-1,64}
export MOE_DEVICE_MEMORY=${MOE_DEVICE_MEMORY:-8GB}
java=${JAVA_HOME:?}/bin/java logs=$PWD/starts.logs begin=$SECONDS
rm -rf "$logs"; mkdir "$logs"
echo "PoCL and other OpenCL drivers: $(cat /etc/OpenCL/vendors/*.icd 2>/dev/null | tr '\n' ' ')"
./moe devices >"$logs/devices" 2>&1 || { cat "$logs/devices"; exit 1; } # makes the argument file, too
cut -c1-100 "$logs/devices" | sed -n '1,/^$/p'
argfile=$(./moe --argfile) || exit 1
classes=${CLASSES:-src/cli/target/tornado-moe-cli.jar:src/core/target/tornado-moe.jar:target/lib/*}

one() { # KIND NUMBER
  local kind=$1 log=$logs/$1.$2 on=$device status=0 dir
  [ "${kind#*-}" = 1 ] || on=$device,$device,$device,$device
  set -- bench --backend triton --shape "$shape" --tokens "$tokens" --runs 3 --seconds 0.05 --devices "$on"
  dir=$(mktemp -d "$logs/cwd.XXXX")
  case $kind in
    launcher-*) JAVA_TOOL_OPTIONS="-XX:ErrorFile=$dir/hs_err.log -Xmx3g" ./moe "$@" >"$log" 2>&1 || status=$? ;;
    guard-*) env -u LD_PRELOAD "$java" "@$argfile" "-XX:ErrorFile=$dir/hs_err.log" -Xmx3g "-Dtornado.device.memory=$MOE_DEVICE_MEMORY" \
      -cp "$classes" org.tornadomoe.cli.Moe "$@" >"$log" 2>&1 || status=$? ;;
  esac
  local how=ok
  if [ "$status" -ge 128 ] || [ -f "$dir/hs_err.log" ]; then how=DEATH; elif [ "$status" -ne 0 ]; then how=failed; fi
  [ ! -f "$dir/hs_err.log" ] || cp "$dir/hs_err.log" "$log.hs_err"
  rm -rf "$dir"
  echo "$kind $how $status $(grep -c 'had put handlers' "$log")" >>"$logs/summary"
  [ $how = ok ] || echo "$kind $how, status $status: $(tail -n 3 "$log" | cut -c1-300)"
}

kinds=(${KINDS:-launcher-1 launcher-4 launcher-1 launcher-4 guard-1 launcher-1 launcher-4 launcher-1 launcher-4 guard-4})
total=$((starts * 5 / 4)) n=0
: >"$logs/summary"
while [ $n -lt $total ] && [ $((SECONDS - begin)) -lt "$seconds" ]; do
  while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n; done
  one "${kinds[n % ${#kinds[@]}]}" $n &
  n=$((n + 1))
done
wait
echo "$n starts, shape $shape, tokens $tokens, $at_once at once, $((SECONDS - begin)) s; first warning of the library's guard:"
grep -h 'had put handlers' "$logs"/guard-* 2>/dev/null | head -n 1 | cut -c1-400
awk '{ k[$1]++; if ($2 == "ok") ok[$1]++; if ($2 == "DEATH") d[$1]++; if ($2 == "failed") f[$1]++; if ($4 > 0) w[$1]++ }
  END { printf "%-12s %6s %6s %6s %6s %s\n", "kind", "starts", "ok", "deaths", "failed", "warned"
    for (i in k) printf "%-12s %6d %6d %6d %6d %d\n", i, k[i], ok[i], d[i], f[i], w[i] }' "$logs/summary" | sort
