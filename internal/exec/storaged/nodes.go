package storaged

import (
	"context"
	"strings"

	"github.com/nasfleet/nasfleet/messages"
)

// openNode is what the daemon says of an open node (QMP query-named-block-nodes).
type openNode struct {
	Name  string `json:"node-name"`
	Image struct {
		Backing  string `json:"backing-filename"`
		Specific struct {
			Data struct {
				DataFile string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	} `json:"image"`
	Bitmaps []struct {
		Name string `json:"name"`
		// Recording says that whoever writes the disk writes into the bitmap too.
		Recording    bool `json:"recording"`
		Persistent   bool `json:"persistent"`
		Inconsistent bool `json:"inconsistent"`
	} `json:"dirty-bitmaps"`
}

func (g *graph) look(ctx context.Context, node string) (openNode, error) {
	var nodes []openNode
	if err := g.d.qmp.execute(ctx, "query-named-block-nodes", object{"flat": true}, &nodes); err != nil {
		return openNode{}, err
	}
	for _, n := range nodes {
		if n.Name == node {
			return n, nil
		}
	}
	return openNode{}, messages.Errorf(messages.CodeInternal, "the storage daemon does not know its node %s", node)
}

// standsAlone says whether an open qcow2 node uses no file but the one below it: errDataFile if it uses another
// for its data, errBacking if its header names a backing file.
func (g *graph) standsAlone(ctx context.Context, node string) error {
	n, err := g.look(ctx, node)
	switch {
	case err != nil:
		return err
	case n.Image.Specific.Data.DataFile != "":
		return errDataFile
	case n.Image.Backing != "":
		return errBacking
	}
	return nil
}

// exportBitmaps serves a node for reading, with those of its bitmaps that have the prefix and can be trusted.
func (g *graph) exportBitmaps(ctx context.Context, name, node, prefix string) error {
	if prefix == "" {
		return g.export(ctx, name, node, false)
	}
	n, err := g.look(ctx, node)
	if err != nil {
		return err
	}
	g.bitmaps = []string{}
	for _, b := range n.Bitmaps {
		if strings.HasPrefix(b.Name, prefix) && b.Recording && b.Persistent && !b.Inconsistent {
			g.bitmaps = append(g.bitmaps, b.Name)
		}
	}
	return g.exportWith(ctx, object{"node-name": node, "name": name, "writable": false, "bitmaps": g.bitmaps})
}

// Bitmaps names the dirty bitmaps that an export of OpenDisk has as metadata contexts.
func (d *Daemon) Bitmaps(export string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.exports[export]; g != nil {
		return g.bitmaps
	}
	return nil
}
