package client

import (
	"context"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Deploy stores code and makes a version of a function. A version is named by
// its content, so a repeat changes nothing.
func (c *Client) Deploy(ctx context.Context, req *isobarv1.DeployRequest) (*isobarv1.DeployResponse, error) {
	return call(ctx, c, "deploy", anytime, (*server).functionCalls, isobarv1.FunctionServiceClient.Deploy, req)
}

// GetFunction reads a function and where it can run.
func (c *Client) GetFunction(ctx context.Context, req *isobarv1.FunctionServiceGetRequest) (*isobarv1.FunctionServiceGetResponse, error) {
	return call(ctx, c, "get function", question, (*server).functionCalls, isobarv1.FunctionServiceClient.Get, req)
}

// ListFunctions lists a tenant's functions.
func (c *Client) ListFunctions(ctx context.Context, req *isobarv1.FunctionServiceListRequest) (*isobarv1.FunctionServiceListResponse, error) {
	return call(ctx, c, "list functions", question, (*server).functionCalls, isobarv1.FunctionServiceClient.List, req)
}

// DeleteFunction takes a function's name away. When an answer was lost and the
// call repeated, the error may be that there is no such function any more.
func (c *Client) DeleteFunction(ctx context.Context, req *isobarv1.FunctionServiceDeleteRequest) (*isobarv1.FunctionServiceDeleteResponse, error) {
	return call(ctx, c, "delete function", anytime, (*server).functionCalls, isobarv1.FunctionServiceClient.Delete, req)
}

// Report tells every cell of incidents of a function. A request without an id is
// given one, so that what is repeated counts once.
func (c *Client) Report(ctx context.Context, req *isobarv1.ReportRequest) (*isobarv1.ReportResponse, error) {
	if req.GetReportId() == "" {
		req = proto.CloneOf(req)
		req.ReportId = uuid.NewString()
	}
	return call(ctx, c, "report", anytime, (*server).functionCalls, isobarv1.FunctionServiceClient.Report, req)
}

// Cells lists the cells as the asked server sees them.
func (c *Client) Cells(ctx context.Context) (*isobarv1.CellsResponse, error) {
	return call(ctx, c, "cells", question, (*server).meshCalls, isobarv1.MeshServiceClient.Cells, &isobarv1.CellsRequest{})
}

// Watch hands the cells to f whenever they have changed, in one goroutine, until
// ctx ends (then the error is nil), f fails (then it is f's), or no server has gone
// on for Patience.
func (c *Client) Watch(ctx context.Context, f func([]*isobarv1.CellInfo) error) error {
	return listen(ctx, c, "watch", (*server).meshCalls, isobarv1.MeshServiceClient.Watch, &isobarv1.WatchRequest{},
		func(res *isobarv1.WatchResponse) error { return f(res.GetCells()) })
}

// Workers lists the workers of the asked cell.
func (c *Client) Workers(ctx context.Context) (*isobarv1.WorkersResponse, error) {
	return call(ctx, c, "workers", question, (*server).meshCalls, isobarv1.MeshServiceClient.Workers, &isobarv1.WorkersRequest{})
}

// Carbon lists the carbon intensity of every region, now and for the hours
// ahead.
func (c *Client) Carbon(ctx context.Context) (*isobarv1.CarbonResponse, error) {
	return call(ctx, c, "carbon", question, (*server).meshCalls, isobarv1.MeshServiceClient.Carbon, &isobarv1.CarbonRequest{})
}
