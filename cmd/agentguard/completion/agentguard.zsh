#compdef agentguard
# zsh completion for agentguard
_agentguard() {
	local -a candidates
	candidates=("${(@f)$(agentguard __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n "$candidates" ]]; then
		compadd -a candidates
	else
		_files
	fi
}
if [[ "$funcstack[1]" = _agentguard ]]; then
	_agentguard "$@"
else
	compdef _agentguard agentguard
fi
