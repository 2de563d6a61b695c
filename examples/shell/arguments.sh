# Shows its arguments, one a line, exactly as they were given.
echo "$# argument(s)"
number=0
for argument in "$@"; do
    number=$((number + 1))
    printf '%d: %s\n' "$number" "$argument"
done
