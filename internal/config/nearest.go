package config

import "strings"

// nearest returns the known word that word was most likely meant to be, or "".
func nearest(word string, known []string) string {
	best, least := "", max(1, len(word)/3)+1 // one slip in three letters is allowed
	for _, k := range known {
		if strings.EqualFold(word, k) || plain(word) == plain(k) {
			return k
		}
		if n := distance(word, k); n < least {
			best, least = k, n
		}
	}
	if best == "" {
		return begun(word, known)
	}
	return best
}

// begun returns the only known word that begins with word, or that word begins
// with, from two letters on; "" if there is none or several.
func begun(word string, known []string) (is string) {
	for _, k := range known {
		if min(len(word), len(k)) < 2 || !strings.HasPrefix(k, word) && !strings.HasPrefix(word, k) {
			continue
		}
		if is != "" {
			return ""
		}
		is = k
	}
	return is
}

// plain drops case and the marks that people put between words.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r == ' ' {
			return -1
		}
		return r
	}, strings.ToLower(s))
}

// maxWord is the longest word that is compared; longer ones are near nothing.
const maxWord = 40

// distance is the number of letters to add, drop, change or swap with their
// neighbour that make b from a.
func distance(a, b string) int {
	if len(a) > maxWord || len(b) > maxWord {
		return maxWord
	}
	var rows [3][maxWord + 1]int
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		row, above, twice := &rows[i%3], &rows[(i+2)%3], &rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], twice[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}

// Suggest ends a fault's text with the nearest known word, or with all of them.
func Suggest(word string, known []string) string {
	if n := nearest(word, known); n != "" {
		return "did you mean " + n + "?"
	}
	if len(known) == 0 {
		return "there is none"
	}
	const most = 32
	if len(known) > most {
		return "known: " + strings.Join(known[:most], ", ") + ", …"
	}
	return "known: " + strings.Join(known, ", ")
}
