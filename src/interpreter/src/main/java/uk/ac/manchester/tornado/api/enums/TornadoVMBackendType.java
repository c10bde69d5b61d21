package uk.ac.manchester.tornado.api.enums;

/** What compiles and runs the tasks. */
public enum TornadoVMBackendType {
    OPENCL,
    METAL,
    PTX,
    CUDA,
    SPIRV,
    JAVA,
    VIRTUAL
}
