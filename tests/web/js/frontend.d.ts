/** The little of ComfyUI's frontend that the widget touches. */
declare module "*/scripts/app.js" {
  export const app: any;
}
declare module "*/scripts/api.js" {
  export const api: any;
}
interface Window {
  LiteGraph?: { vueNodesMode?: boolean; createNode(type: string): any };
}
