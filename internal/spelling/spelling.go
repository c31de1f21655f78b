// Package spelling suggests a known name for a misspelt one.
package spelling

import "strings"

// Closest returns the name that a user has probably meant by a word, or "". Capitals,
// hyphens and underscores do not count.
func Closest(word string, names []string) string {
	word = plainName(word)
	best, least := "", 3 // at most two typing errors
	for _, name := range names {
		other := plainName(name)
		distance := typingErrors(word, other)
		switch {
		case distance <= len(other)/3:
		case len(word) >= 3 && strings.HasPrefix(other, word), len(other) >= 3 && strings.HasPrefix(word, other):
			distance = 2 // geoip for geoip_database, expires for exp
		default:
			continue
		}
		if distance < least {
			best, least = name, distance
		}
	}
	return best
}

func plainName(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

// typingErrors returns how many bytes to insert, remove, replace, or swap with the
// next one, make a the same as b.
func typingErrors(a, b string) int {
	prefixes := make([][]int, len(a)+1) // the result for each prefix of a and each of b
	for i := range prefixes {
		prefixes[i] = make([]int, len(b)+1)
		for j := range prefixes[i] {
			switch {
			case i == 0 || j == 0:
				prefixes[i][j] = i + j
				continue
			case a[i-1] == b[j-1]:
				prefixes[i][j] = prefixes[i-1][j-1]
				continue
			}
			prefixes[i][j] = 1 + min(prefixes[i-1][j], prefixes[i][j-1], prefixes[i-1][j-1])
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				prefixes[i][j] = min(prefixes[i][j], 1+prefixes[i-2][j-2])
			}
		}
	}
	return prefixes[len(a)][len(b)]
}
