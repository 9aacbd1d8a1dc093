# Completion of the harness's commands, printed by `python -m harness completion bash|zsh`.
# Options are what --help says, so that they are never old. All else is completed as files.
_harness() {
    local current=${COMP_WORDS[COMP_CWORD]} first=${COMP_WORDS[1]} module=${COMP_WORDS[2]}
    local -a command
    COMPREPLY=()
    if [[ $first == -m && $module == harness* && $COMP_CWORD -gt 2 ]]; then
        command=("${COMP_WORDS[0]}" -m "$module")
        if [[ $module == harness && $COMP_CWORD -eq 3 ]]; then
            COMPREPLY=($(compgen -W "list schema completion export pack" -- "$current"))
            return
        elif [[ $module == harness && ${COMP_WORDS[3]} == list && $COMP_CWORD -eq 4 ]]; then
            COMPREPLY=($(compgen -W "methods parts parameters presets skills graders suites orders" -- "$current"))
            return
        elif [[ $module == harness ]]; then
            command+=("${COMP_WORDS[3]}")
        fi
    elif [[ ${first##*/} =~ ^(run_sequence|report|main)\.py$ ]]; then
        command=("${COMP_WORDS[0]}" "$first")
    fi
    if [[ ${#command[@]} -gt 0 && $current == -* ]]; then
        local options
        options=$("${command[@]}" --help 2>/dev/null | grep -oE -- '--[a-z][a-z_-]*' | sort -u)
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    fi
}
complete -o bashdefault -o default -F _harness python python3 .venv/bin/python
