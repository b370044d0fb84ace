#!/bin/sh
# Attach a stream, ask about it, read the timeline and detach it, over the HTTP API with curl.
#
#   sh examples/http_api.sh rtsp://192.168.1.20/stream1
#   STREAMER_API=http://10.0.0.5:8080 STREAMER_API_KEY=secret sh examples/http_api.sh rtsp://...
set -eu

url=$1
api=${STREAMER_API:-http://127.0.0.1:8080}/v1
name=example-$$

call() { # METHOD PATH [JSON]
  curl --silent --fail-with-body --write-out '\n' --request "$1" "$api$2" \
    ${STREAMER_API_KEY:+--header "Authorization: Bearer $STREAMER_API_KEY"} \
    ${3:+--header "Content-Type: application/json" --data "$3"}
}

call POST /streams "{\"name\": \"$name\", \"url\": \"$url\"}"
trap 'call DELETE "/streams/$name"' EXIT

# a question needs a frame to look at, and the first one takes a moment
until query=$(call POST /queries "{\"stream\": \"$name\", \"prompt\": \"Is there a car?\"}"); do
  case $query in *NO_FRAMES*) sleep 1 ;; *) echo "$query" >&2; exit 1 ;; esac
done
id=$(echo "$query" | grep -o 'qry_[0-9a-f]*' | head -n 1)

call GET "/queries/$id?wait=60"
call GET "/results?stream=$name&limit=5"
