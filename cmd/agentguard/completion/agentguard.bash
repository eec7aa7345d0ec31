# bash completion for agentguard
_agentguard() {
	local IFS=$'\n'
	COMPREPLY=($(agentguard __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _agentguard agentguard
