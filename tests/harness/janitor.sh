# Removes what test programs leave behind when they are killed before they can do it themselves.
# One janitor per test program, in a session of its own: first it looks after programs that are gone already,
# then it waits for its own to end. A program is alive as long as it holds the lock on its directory's `alive`.
workshops=$1
own=$2

remove() {
    for container in $(runc --root "$1/runc" list --quiet); do
        runc --root "$1/runc" delete --force "$container"
    done
    # No mount is ever made outside a container's mount namespace; the option guards against surprises.
    rm -rf --one-file-system "$1"
}

for other in "$workshops"/*; do
    if [ -e "$other/alive" ] && flock --nonblock "$other/alive" true; then remove "$other"; fi
done
flock "$own/alive" true
remove "$own"
