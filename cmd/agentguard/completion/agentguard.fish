# fish completion for agentguard
function __agentguard_complete
	set -l words (commandline --current-process --tokenize --cut-at-cursor)
	agentguard __complete -- $words[2..-1] (commandline --current-token --cut-at-cursor) 2>/dev/null
end
complete --command agentguard --arguments '(__agentguard_complete)'
