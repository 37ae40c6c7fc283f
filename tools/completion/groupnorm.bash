# Completion of groupnorm's command line in bash. All words come from its --help.
_groupnorm() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=() help words=
  ((COMP_CWORD > 1)) && command=("${COMP_WORDS[1]}")
  help=$(COLUMNS=1000 "$1" "${command[@]}" --help 2>/dev/null) || return
  case $before in
    --target) words=$("$1" info 2>/dev/null | sed -n 's/^targets *//p' | tr -d ,) ;;
    --*)  # --layout channels_first|channels_last=channels_first
      words=$(sed -n "s/^ *$before \([^ =]*|[^ =]*\).*/\1/p" <<<"$help" | tr '|' ' ') ;;
  esac
  if [[ -z $words && $word == -* ]]; then
    words=$(sed -n 's/^  *\(-[^ ]*\).*/\1/p' <<<"$help" | tr ',' ' ')
  elif [[ -z $words ]] && ((COMP_CWORD == 1)); then
    words=$(sed -n '/^Subcommands:/,/^$/s/^  \([^ ]*\) .*/\1/p' <<<"$help")
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o default -F _groupnorm groupnorm
