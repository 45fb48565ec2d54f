package nbd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The table of requirements in doc.go is complete, and names tests that exist.
func TestConformanceTable(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	id := ""
	row := regexp.MustCompile(`(?m)^//\t(?:([A-Z][0-9]+) +|     )(.*)$`)
	for _, m := range row.FindAllStringSubmatch(string(doc), -1) {
		if m[1] != "" {
			id = m[1]
		}
		rows[id] += m[2] + " "
	}
	tests := regexp.MustCompile(`([a-z/]+\.)?(Test[A-Za-z0-9]+)`)
	for letter, last := range map[string]int{"H": 24, "T": 18, "S": 10, "X": 23, "E": 8} {
		for i := 1; i <= last; i++ {
			id := fmt.Sprint(letter, i)
			text, ok := rows[id]
			named := tests.FindAllStringSubmatch(text, -1)
			switch {
			case !ok:
				t.Errorf("%s is missing", id)
			case len(named) == 0 && !strings.HasPrefix(text, "not tested: "):
				t.Errorf("%s has neither a test nor a reason: %q", id, text)
			}
			for _, m := range named {
				if !testExists(t, strings.TrimSuffix(m[1], "."), m[2]) {
					t.Errorf("%s: there is no %s%s", id, m[1], m[2])
				}
			}
		}
	}
}

func testExists(t *testing.T, pkg, name string) bool {
	t.Helper()
	dir := "."
	if pkg != "" {
		dir = filepath.Join("..", pkg)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}
