package groups

import (
	"cmp"
	"slices"
)

// Assign shares the partitions among the sessions, which are in the order they
// joined. Shares differ by one at most, and as few partitions as possible
// change hands from before, which names the session of each partition so far;
// others than those of sessions count as nobody's. With more sessions than
// partitions, those that joined last get none. Equal inputs give equal shares.
func Assign(sessions, before []string) []string {
	owners := make([]string, len(before))
	if len(sessions) == 0 {
		return owners
	}
	held := make(map[string]int, len(sessions))
	for _, s := range sessions {
		held[s] = 0
	}
	for _, s := range before {
		if _, ok := held[s]; ok {
			held[s]++
		}
	}
	// Who holds most keeps one more, where shares can't be equal: fewest moves.
	byHeld := slices.Clone(sessions)
	slices.SortStableFunc(byHeld, func(a, b string) int { return cmp.Compare(held[b], held[a]) })
	room := make(map[string]int, len(sessions))
	for i, s := range byHeld {
		room[s] = len(before) / len(sessions)
		if i < len(before)%len(sessions) {
			room[s]++
		}
	}
	for i, s := range before {
		if room[s] > 0 {
			owners[i] = s
			room[s]--
		}
	}
	next := 0
	for i := range owners {
		if owners[i] != "" {
			continue
		}
		for room[sessions[next]] == 0 {
			next++
		}
		owners[i] = sessions[next]
		room[sessions[next]]--
	}
	return owners
}
