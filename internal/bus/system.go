package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// systemPause is how long the servers of a cluster are waited for after the last one has answered.
const systemPause = time.Second

// UpdateAccount gives the servers an account's JWT in place of the one they have; users that it
// revokes are disconnected. The connection has to be one of the system account, and the servers
// ones that keep accounts (resolver type full).
func (b *Bus) UpdateAccount(ctx context.Context, token string) error {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("update an account: %w: this user is not of the system account, or the server takes no accounts", ErrUnauthorized)
	}
	if err != nil {
		return b.fail("update an account", err)
	}
	var answer struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return fmt.Errorf("update an account: %w", err)
	}
	if answer.Error != nil {
		return fmt.Errorf("update an account: %s", answer.Error.Description)
	}
	return nil
}

// ServerInfo is what a server says of itself to the system account.
type ServerInfo struct {
	Name string
	// JetStream says whether it is on.
	JetStream bool
	// SyncAlways says that each write is on disk before it is acknowledged.
	SyncAlways bool
}

// Servers asks all servers about themselves. The connection has to be one of the system account.
func (b *Bus) Servers(ctx context.Context) ([]ServerInfo, error) {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	inbox := b.nc.NewRespInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, b.fail("ask the servers", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only where there is no connection left
	if err := b.nc.PublishRequest("$SYS.REQ.SERVER.PING.JSZ", inbox, nil); err != nil {
		return nil, b.fail("ask the servers", err)
	}
	var servers []ServerInfo
	for {
		wait, cancel := ctx, func() {}
		if len(servers) > 0 { // nobody knows how many there are
			wait, cancel = context.WithTimeout(ctx, systemPause)
		}
		m, err := sub.NextMsgWithContext(wait)
		cancel()
		if err != nil && len(servers) > 0 {
			return servers, nil
		}
		if errors.Is(err, nats.ErrNoResponders) {
			return nil, fmt.Errorf("ask the servers: %w: this user is not of the system account", ErrUnauthorized)
		}
		if err != nil {
			return nil, b.fail("ask the servers", err)
		}
		s, err := decodeServer(m.Data)
		if err != nil {
			return nil, fmt.Errorf("ask the servers: %w", err)
		}
		servers = append(servers, s)
	}
}

func decodeServer(data []byte) (ServerInfo, error) {
	var answer struct {
		Server struct {
			Name string `json:"name"`
		} `json:"server"`
		Data struct {
			Disabled bool `json:"disabled"`
			Config   struct {
				SyncAlways bool `json:"sync_always"`
			} `json:"config"`
		} `json:"data"`
	}
	err := json.Unmarshal(data, &answer)
	return ServerInfo{Name: answer.Server.Name, JetStream: !answer.Data.Disabled, SyncAlways: answer.Data.Config.SyncAlways}, err
}
