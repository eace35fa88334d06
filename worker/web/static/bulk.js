// What can be asked for many tasks at once.
export const retryAll = () => "";
