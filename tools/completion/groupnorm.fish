# Completion of groupnorm's command line in fish. All words come from its --help.
function __groupnorm_help
    set -l words (commandline -opc)
    COLUMNS=1000 command $words[1] $words[2] --help 2>/dev/null
end
function __groupnorm_values
    set -l before (commandline -opc)[-1]
    switch $before
        case --target
            command groupnorm info | string replace -rf '^targets *' '' | string split ', '
        case '--*'
            __groupnorm_help | string replace -rf "^ *$before ([^ =]*\|[^ =]*).*" '$1' | string split '|'
    end
end
complete -c groupnorm -n '__fish_is_first_arg' -f -a '(__groupnorm_help | string match -rg "^  ([a-z]+)  +.*")'
complete -c groupnorm -a '(__groupnorm_values)'
complete -c groupnorm -n 'string match -q -- "-*" (commandline -ct)' \
    -a '(__groupnorm_help | string replace -rf "^ +(-[^ ]*).*" "\$1" | string split ,)'
