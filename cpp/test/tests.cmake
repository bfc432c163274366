# The programs that test the native parts. What each does stands in its file.

function(kvtuner_test name)
    cmake_parse_arguments(test "" "" "SOURCES;FOLDERS;LIBRARIES" ${ARGN})
    list(TRANSFORM test_FOLDERS PREPEND "cpp/" REGEX "^[a-z]+$")
    add_executable(kvtuner-${name} ${test_SOURCES})
    target_include_directories(kvtuner-${name} PRIVATE ${test_FOLDERS})
    target_link_libraries(kvtuner-${name} PRIVATE ${test_LIBRARIES} ${CMAKE_DL_LIBS})
endfunction()

set(KVTUNER_GGML "${KVTUNER_LLAMA}/ggml/src")

kvtuner_test(fuzz SOURCES cpp/test/fuzz_plan.cpp ${KVTUNER_PLAN}
    FOLDERS include plan format "${KVTUNER_LLAMA}/vendor" "${KVTUNER_LLAMA}/common" LIBRARIES ggml-base)
kvtuner_test(test-backend SOURCES cpp/test/test_backend.cpp FOLDERS device graph "${KVTUNER_GGML}" LIBRARIES llama)
kvtuner_test(test-decode SOURCES cpp/test/test_decode.cpp FOLDERS format cpu "${KVTUNER_GGML}" LIBRARIES ggml)
kvtuner_test(test-mask SOURCES cpp/test/test_mask.cpp FOLDERS runtime "${KVTUNER_LLAMA}/src" LIBRARIES llama)
kvtuner_test(test-inputs SOURCES cpp/test/test_inputs.cpp FOLDERS device "${KVTUNER_GGML}" LIBRARIES ggml)
kvtuner_test(test-products SOURCES cpp/test/test_products.cpp FOLDERS graph "${KVTUNER_GGML}" LIBRARIES ggml)
kvtuner_test(test-lowbit SOURCES cpp/test/test_lowbit.cpp cpp/test/lowbit_sides.cpp
    FOLDERS format "${KVTUNER_GGML}" LIBRARIES ggml)
kvtuner_test(test-attention SOURCES cpp/test/test_attention.cpp cpp/test/attention_edges.cpp
    FOLDERS format graph cpu LIBRARIES ggml)
kvtuner_test(test-gpu-attention SOURCES cpp/test/test_gpu_attention.cpp FOLDERS format graph cpu LIBRARIES ggml)
kvtuner_test(test-gpu-products SOURCES cpp/test/test_gpu_products.cpp FOLDERS graph LIBRARIES ggml)
kvtuner_test(time-attention SOURCES cpp/test/time_attention.cpp FOLDERS graph LIBRARIES ggml)
kvtuner_test(test-writes
    SOURCES cpp/test/test_writes.cpp cpp/test/write_graphs.cpp cpp/test/write_kernels.cpp cpp/test/write_lowbit.cpp
        cpp/test/write_allocations.cpp ${KVTUNER_GRAPH}
    FOLDERS format graph cpu "${KVTUNER_GGML}" LIBRARIES ggml)
if(NOT APPLE)  # its fibers are those of ucontext.h
    set(KVTUNER_CUDA_ON_CPU cpp/test/cuda_on_cpu.cpp cpp/test/fiber.cpp)
    kvtuner_test(test-cuda-lowbit SOURCES cpp/test/test_cuda_lowbit.cpp cpp/test/cuda_kernels.cpp ${KVTUNER_CUDA_ON_CPU}
        FOLDERS format cuda test "${KVTUNER_GGML}" LIBRARIES ggml)
    set(KVTUNER_ATTEND ${KVTUNER_NVIDIA})
    list(FILTER KVTUNER_ATTEND INCLUDE REGEX "\\.cu$")
    set_source_files_properties(${KVTUNER_ATTEND} PROPERTIES LANGUAGE CXX)
    kvtuner_test(test-cuda-attention SOURCES cpp/test/test_cuda_attention.cpp ${KVTUNER_CUDA_ON_CPU} ${KVTUNER_NVIDIA}
        FOLDERS format graph cpu device cuda test "${KVTUNER_GGML}" LIBRARIES ggml)
    foreach(name inputs norm thin)
        kvtuner_test(test-cuda-${name} SOURCES cpp/test/test_cuda_${name}.cpp ${KVTUNER_CUDA_ON_CPU}
            FOLDERS cuda test "${KVTUNER_GGML}" LIBRARIES ggml)
    endforeach()
    foreach(name lowbit attention inputs norm thin)
        target_compile_definitions(kvtuner-test-cuda-${name} PRIVATE KVTUNER_CUDA_ON_CPU)
        # kernels read words as other types than they were written as; fibers jump from stack to stack; no thread-local
        # array is made as the program runs
        target_compile_options(kvtuner-test-cuda-${name} PRIVATE -fno-strict-aliasing -U_FORTIFY_SOURCE -Wno-unknown-pragmas
            $<$<CXX_COMPILER_ID:GNU>:-fno-extern-tls-init>)
    endforeach()
    foreach(name lowbit norm thin)
        target_compile_options(kvtuner-test-cuda-${name} PRIVATE -ffp-contract=off)
    endforeach()
    # as on a GPU, what is read where it is not aligned ends the program
    foreach(name attention thin)
        target_compile_options(kvtuner-test-cuda-${name} PRIVATE -fsanitize=alignment -fsanitize-undefined-trap-on-error)
    endforeach()
endif()
kvtuner_test(test-archs
    SOURCES cpp/test/test_archs.cpp cpp/test/arch_plans.cpp cpp/test/arch_runs.cpp cpp/test/slow_cache.cpp
    FOLDERS format graph "${KVTUNER_LLAMA}/src" "${KVTUNER_LLAMA}/common" "${KVTUNER_GGML}" LIBRARIES llama)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    kvtuner_test(count-instructions SOURCES cpp/test/count_instructions.cpp FOLDERS graph LIBRARIES ggml)
endif()
set(KVTUNER_TEST_TARGETS kvtuner-fuzz)
list(APPEND KVTUNER_TEST_TARGETS kvtuner-time-attention)
foreach(name backend decode mask inputs products lowbit cuda-lowbit cuda-attention cuda-inputs cuda-norm cuda-thin attention gpu-attention gpu-products writes archs)
    list(APPEND KVTUNER_TEST_TARGETS kvtuner-test-${name})
endforeach()

# upstream's, without its helpers, which its own target would compile along
if(NOT GGML_BACKEND_DL)  # it links with the CPU back end
    add_executable(kvtuner-test-quantize-fns "${KVTUNER_LLAMA}/tests/test-quantize-fns.cpp")
    target_link_libraries(kvtuner-test-quantize-fns PRIVATE ggml)
endif()

if(KVTUNER_SANITIZE)
    # what cpp/test/ubsan.supp names there must be recoverable
    set_source_files_properties("${KVTUNER_GGML}/ggml-cpu/arch/x86/quants.c"
        TARGET_DIRECTORY ggml-base PROPERTIES COMPILE_OPTIONS -fsanitize-recover=alignment)
endif()
