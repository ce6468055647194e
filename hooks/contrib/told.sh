#!/bin/sh
# A program in shell that hears of freezes and resumes from tell-app. README.md says what is in the files.
set -eu

directory=${TELL_APP_DIR:?names the directory of the two files}

fact() { sed -n "s/^$1=//p" "$directory/state" 2>/dev/null || true; }

heard() {
    mkdir -p "$directory"
    echo "$1" >"$directory/heard.new"
    mv "$directory/heard.new" "$directory/heard"
}

frozen_as=
known=$(fact id)
heard "$known"
echo ready
while :; do
    id=$(fact id)
    if [ -n "$id" ] && [ "$id" != "$known" ]; then
        known=$id
        case $(fact moment) in
        before-freeze)
            frozen_as=$(fact job)
            # Here an app would finish what must not be torn.
            sleep 0.3
            echo quiet
            ;;
        after-resume)
            whose="the same job"
            if [ "$frozen_as" != "$(fact job)" ]; then whose="a clone"; fi
            echo "resumed generation $(fact generation) on $(fact host) as $whose"
            ;;
        after-thaw) echo thawed ;;
        esac
        heard "$known"
    fi
    sleep 0.05
done
