# Our sources, added to the targets of upstream that they belong to.

function(kvtuner_files variable folder)
    list(TRANSFORM ARGN PREPEND "cpp/${folder}/kvtuner-")
    set(${variable} ${ARGN} PARENT_SCOPE)
endfunction()

kvtuner_files(KVTUNER_PLAN plan
    plan.cpp fingerprint.cpp plan-gguf.cpp plan-json.cpp plan-shape.cpp plan-ends.cpp strict-json.cpp vectors.cpp)
kvtuner_files(KVTUNER_RUNTIME runtime
    model.cpp choice.cpp check.cpp cache.cpp exact.cpp exact-input.cpp layers.cpp report.cpp backend.cpp state.cpp
    center.cpp blocks.cpp turned.cpp span.cpp beside.cpp scale.cpp kept.cpp reason.cpp)
kvtuner_files(KVTUNER_GRAPH graph write-steps.cpp writes.cpp)
kvtuner_files(KVTUNER_CPU_SOURCES cpu lowbit-cpu.cpp rows.cpp attention-centers.cpp attention-tile.cpp attention.cpp cpu-write.cpp)
kvtuner_files(KVTUNER_CUDA cuda cuda-write.cu cuda-rows.cu cuda-attention.cu cuda-dense.cu cuda-steps.cu
    cuda-inputs.cu cuda-norm.cu cuda-quantized.cu cuda-thin-products.cu)
kvtuner_files(KVTUNER_NVIDIA cuda
    cuda-node.cpp cuda-lot-layout.cpp cuda-plan.cpp cuda-attend-64-64.cu cuda-attend-96-96.cu cuda-attend-128-128.cu
    cuda-attend-192-128.cu cuda-attend-256-256.cu cuda-attend-512-512.cu cuda-prefill-plan.cpp cuda-seen.cu
    cuda-prefill-64-64.cu cuda-prefill-96-96.cu cuda-prefill-128-128.cu cuda-prefill-192-128.cu cuda-prefill-256-256.cu)
kvtuner_files(KVTUNER_METAL metal
    metal-attention.cpp metal-dense.cpp metal-library.cpp metal-rows.cpp metal-source.cpp metal-steps.cpp metal-write.cpp)
set(KVTUNER_LLAMA "${KVTUNER_SOURCE}/vendor/llama.cpp")

target_sources(llama PRIVATE ${KVTUNER_PLAN} ${KVTUNER_RUNTIME})
foreach(folder include plan runtime format)
    target_include_directories(llama PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/cpp/${folder}>)
endforeach()
target_include_directories(llama PRIVATE
    cpp/graph cpp/device "${KVTUNER_LLAMA}/vendor" "${KVTUNER_LLAMA}/common")

# one target, or one for each variant, which ask their OBJECT libraries whether they run
get_property(KVTUNER_CPU_TARGETS DIRECTORY "${KVTUNER_LLAMA}/ggml/src" PROPERTY BUILDSYSTEM_TARGETS)
list(FILTER KVTUNER_CPU_TARGETS INCLUDE REGEX "^ggml-cpu")
list(FILTER KVTUNER_CPU_TARGETS EXCLUDE REGEX "-feats$")

target_sources(ggml-base PRIVATE cpp/format/kvtuner-lowbit.cpp)
foreach(target IN LISTS KVTUNER_CPU_TARGETS)
    target_sources(${target} PRIVATE ${KVTUNER_GRAPH} ${KVTUNER_CPU_SOURCES})
endforeach()
foreach(target ggml ggml-base ${KVTUNER_CPU_TARGETS} ggml-rpc)
    target_include_directories(${target} PRIVATE cpp/format cpp/graph cpp/device cpp/cpu)
endforeach()
# blocks of q2_nl and q3_nl are found the same to the bit on every machine
set_source_files_properties(cpp/format/kvtuner-lowbit.cpp cpp/cpu/kvtuner-lowbit-cpu.cpp TARGET_DIRECTORY ggml-base
    PROPERTIES COMPILE_OPTIONS "-ffp-contract=off;-fno-math-errno")

foreach(target ggml-cuda ggml-hip)  # ROCm compiles the sources of CUDA
    if(TARGET ${target})
        target_sources(${target} PRIVATE ${KVTUNER_GRAPH} ${KVTUNER_CUDA})
        target_include_directories(${target} PRIVATE cpp/format cpp/graph cpp/device cpp/cuda)
    endif()
endforeach()
if(TARGET ggml-cuda)
    target_sources(ggml-cuda PRIVATE ${KVTUNER_NVIDIA})
endif()
if(TARGET ggml-hip)
    set(KVTUNER_HIP_LANGUAGE HIP)
    if(CMAKE_CXX_COMPILER MATCHES "hipcc(.bat)?$")
        set(KVTUNER_HIP_LANGUAGE CXX)
    endif()
    set_source_files_properties(${KVTUNER_CUDA} TARGET_DIRECTORY ggml-hip PROPERTIES LANGUAGE ${KVTUNER_HIP_LANGUAGE})
endif()
if(TARGET ggml-metal)
    set(KVTUNER_METAL_UPSTREAM "${KVTUNER_LLAMA}/ggml/src")
    set(KVTUNER_METAL_OUT "${CMAKE_BINARY_DIR}/metal/kvtuner-metal-texts.inc")
    include(cpp/metal/embed.cmake)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${KVTUNER_METAL_TEXTS})
    target_sources(ggml-metal PRIVATE ${KVTUNER_GRAPH} ${KVTUNER_METAL})
    target_include_directories(ggml-metal PRIVATE
        cpp/format cpp/graph cpp/device cpp/metal "${KVTUNER_METAL_UPSTREAM}/ggml-metal" "${CMAKE_BINARY_DIR}/metal")
endif()
