package uk.ac.manchester.tornado.api.enums;

/** Whether a profile is printed or only kept. */
public enum ProfilerMode {
    CONSOLE,
    SILENT
}
